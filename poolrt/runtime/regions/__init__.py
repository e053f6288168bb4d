"""Layers split across cards inside one process: regions are found, rewritten, and the rewrite is proven.

    plan = find_regions(model, run, shares)                 finding/find.py      nothing changes
    installed = Installed(model, plan, devices, pieces)     running/install.py   modules run split from here on

finding     capture -> (forms | search_region: probe, needs, granules, dealing, fitting, attributes, dropouts) -> verify
plan        what was found: a value
running     build -> forked, row_linear, split_embedding, split_attention; traffic and parted carry the values
"""
