"""The linear solves of locate-then-edit methods: from keys and residuals to a low-rank change. No model is known here.

Everywhere keys are rows (n, in) and residuals are rows (n, out); a change is `left @ right`, left (out, n) and right
(n, in); all of it in float64.
"""
