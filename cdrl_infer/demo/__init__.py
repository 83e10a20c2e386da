"""The demo in a browser: `cdrl-demo`, and the same app as a Space on the Hub.

`pieces`, `live`, `levels`, `choices` and the functions of `draw`, `compose`, `repair`, `odd` and `plane`
need no gradio; each of the latter five also lays out its tab. `app` puts the tabs together.
"""
