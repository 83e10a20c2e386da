"""``python -m cdrl_train …`` is `cdrl-train`, for launchers and where its script is not on the path."""

from cdrl_train.cli import main

if __name__ == "__main__":
    main()
