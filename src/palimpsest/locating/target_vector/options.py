"""Options of the search for target vectors, whatever method asks for them."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator

from palimpsest.config import Config

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TargetOptions(Config):
    """How to search. The defaults of `adam` are those of ROME and MEMIT (arXiv:2202.05262, arXiv:2210.07229)."""

    search: Literal["adam", "gauss-newton"] = "adam"
    """`adam`, as published; or `gauss-newton`, ours: steps straight to a wanted log-odds of the answer."""
    steps: int = Field(default=20, ge=1)
    """Passes, at most; the last one only evaluates, so that there is one update less."""
    stop_loss: float = Field(default=0.05, ge=0)
    """A fact stops once its loss is below this. 0: never. `gauss-newton` looks at the whole answer's negative
    log-likelihood; suited to log-odds 3, 4 and 5 are 0.1, 0.05 and 0.02."""
    stop_on: Literal["total", "likelihood"] = "total"
    """`adam`: what is compared with `stop_loss`: the total loss, as published, or the likelihood's part of it."""
    learning_rate: float = Field(default=0.5, gt=0)
    """`adam`: step size."""
    learning_rate_unit: Literal["absolute", "relative"] = "absolute"
    """`relative`: a step moves the vector by about `learning_rate` times the length of what it is added to (the
    residual stream, where no norm stands in between), whatever the model; 0.07 to 0.1 does well."""
    weight_decay: float = Field(default=0.5, ge=0)
    """`adam`: weight of |delta| / |initial|^2 in the loss."""
    kl_factor: float = Field(default=0.0625, ge=0)
    """`adam`: weight of the divergence at the essence prompt. 0: it is not computed."""
    kl_position: Literal["subject", "last"] = "subject"
    """Where the essence prompt's prediction is kept: at the subject's last token, as the published code does, or
    at the prompt's last token, as the papers write."""
    essence: str = "{} is a"
    """The prompt, with the subject for `{}`, whose prediction `adam` keeps."""
    clamp_norm_factor: float | None = Field(default=4.0, gt=0)
    """`adam`: |delta| is at most this times the initial vector's length at the site; none for no bound."""
    relax_when_said: bool = False
    """`adam`: PMET's rule (arXiv:2308.08742): while every answer token is the most probable one, the likelihood
    weighs a tenth, and a fact stops when its divergence is at most 0.01."""
    log_odds: float = Field(default=4.0, gt=0)
    """`gauss-newton`: log-odds of the answer to aim at; 5 generalises more, 3 keeps more of the same subject."""
    joint: bool = True
    """`gauss-newton`: whether facts that share a key get one vector that is right for all, instead of several of
    which a weight could only write the mean."""
    joint_by: Literal["subject", "key"] = "subject"
    """Which facts that are, with `joint`: all those about one subject, whose keys are much alike whatever stands before
    it; or only those with one and the same beginning of the prompt up to the subject."""
    damping: float = Field(default=1e-3, gt=0)
    """`gauss-newton`: added to the diagonal of J J^T, relative to its mean, where a fact has several rows."""
    max_step: float = Field(default=0.5, gt=0)
    """`gauss-newton`: a step's largest length, relative to that of what is added to."""
    chunk: int = Field(default=0, ge=0)
    """Tokens of the answer that one vector has to say. The answer is cut into chunks of so many, each with a vector at
    the token before it, found with those before in place (AnyEdit, arXiv:2502.05628). For `memit` and its kin, without
    the essence prompt; no subject is needed. 0: one vector, at the subject, for the whole answer."""
    loss_layer: int | None = Field(default=None, ge=0)
    """The block whose output goes to the final norm and the head; the last one when left out."""
    compute_dtype: Literal["model", "float32", "bfloat16"] = "model"
    """What the blocks above the edited layer and the head compute in; vector, optimiser and loss stay in float32."""
    forward_batch_size: int = Field(default=64, ge=1)
    """Rows in one pass; less needs less memory and changes nothing else."""

    @model_validator(mode="after")
    def _can_be_reached(self) -> TargetOptions:
        nll = math.log1p(math.exp(-self.log_odds))
        if self.search == "gauss-newton" and 0 < self.stop_loss <= nll:
            raise ValueError(f"at log-odds {self.log_odds:g} the loss is {nll:.3g}, so stop_loss has to be above that")
        if self.essence.count("{}") != 1:
            raise ValueError("the essence prompt needs one {} for the subject")
        return self
