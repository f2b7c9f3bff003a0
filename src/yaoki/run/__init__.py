"""One run from start to end, over any number of attempts: where all the other rooms meet."""
