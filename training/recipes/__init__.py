"""The recipes, so that an installed `dpmtrain kit` finds them."""
