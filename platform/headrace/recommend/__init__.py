"""One way from contexts to answers, taken by evaluation and by serving, so that they cannot disagree."""
