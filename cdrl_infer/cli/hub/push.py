"""`cdrl-hub push`: upload a model folder to the Hub."""

from __future__ import annotations

import json
from typing import Any

import click

from cdrl_infer.cli.command import IMPORT


@click.command()
@click.argument("folder", metavar="FOLDER")
@click.argument("repo_id", metavar="USER/MODEL")
@click.option(
    "--private/--public",
    default=None,
    help="Whether a created repository is private. [the account's default]",
)
@click.option("--revision", metavar="BRANCH", help="Branch, created if it does not exist. [main]")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option(
    "--message", "commit_message", metavar="TEXT", help="Commit message. [Upload a CDRL model]"
)
@click.option("--overwrite-card", is_flag=True, help="Replace the README.md of the repository.")
@IMPORT
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def push(
    folder: str, repo_id: str, revision: str | None, create_pr: bool, as_json: bool, **options: Any
) -> None:
    """Upload a model folder.

    Example: cdrl-hub push my-model user/my-model. All files go in one commit. The model is loaded
    first, so a broken one is not sent. The repository is created if it does not exist. Its other files
    stay, and a failed upload leaves all of them unchanged.
    """
    from cdrl_infer.storage import hub
    from cdrl_infer.storage.folder import load_model

    hub.check_push(repo_id, revision=revision, create_pr=create_pr)
    for variant in hub.variants(folder):
        load_model(folder, variant=variant)
    pushed = hub.push(folder, repo_id, revision=revision, create_pr=create_pr, **options)
    if as_json:
        click.echo(json.dumps({"repo_id": repo_id, **pushed._asdict()}, indent=2))
        return
    click.echo(pushed.url)
    if pushed.card_kept:
        click.echo(f"{repo_id} keeps its README.md; --overwrite-card replaces it", err=True)
