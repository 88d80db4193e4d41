"""The repertoire: one file a paper, its claims and the experiment that shows them."""
