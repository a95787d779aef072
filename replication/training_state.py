"""All that changes during training, and one optimizer step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from replication.config import ExperimentConfig
from replication.critic import Critic
from replication.models import Policy


class TrainingState:
    """All that changes during training: the trainable parameters, the optimizer, and the last parameters that were validated.

    Random streams are not part of it: they are functions of (seed, step).

    Attributes:
        trained: the policy, or its critic, which has a state of its own with an optimizer of its own.
        critic: the critic's state, for a method that needs values; its tensors are saved and restored with these.
    """

    @classmethod
    def of_run(cls, config: ExperimentConfig, policy: Policy) -> TrainingState:
        """Before the first step of a run, with a critic if its method needs values."""
        state = cls(policy, config.learning_rate)
        if "values" in getattr(config.build_method(), "needs", ()):
            state.critic = cls(Critic(policy, config), config.critic_learning_rate or config.learning_rate)
        return state

    def __init__(self, trained: Policy | Critic, learning_rate: float) -> None:
        self.trained = trained
        self.learning_rate = learning_rate
        parameters = list(trained.trainable.values())
        self.optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0) if parameters else None
        self.validated: dict[str, Tensor] = {}
        self.critic: TrainingState | None = None
        self.sixteen_bits = trained.model.dtype in (torch.float16, torch.bfloat16)
        # Without a factor on the loss, the gradient of a single token would be below the least number of float16.
        self.scaler = torch.amp.GradScaler(trained.model.device.type, enabled=trained.model.dtype == torch.float16)

    def zero_grad(self) -> None:
        """Forget the gradients of the step before."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.critic is not None:
            self.critic.zero_grad()

    def step(self, loss: float, warm: float, max_grad_norm: float) -> float | None:
        """Clip the gradient and move the parameters at ``warm`` times the learning rate.

        Returns the norm before clipping, in units of the loss. None if loss or gradient is not finite; the parameters then stay as
        they were. In 16 bits that happens in good runs too.
        """
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(list(self.trained.trainable.values()), max_grad_norm).item()
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate * warm
            self.optimizer.step()
        self.scaler.update()
        return norm if finite else None

    def note_validated(self) -> None:
        """Keep a copy of the present parameters: a validation has shown that they give finite numbers."""
        self.validated = {name: value.detach().to("cpu", copy=True) for name, value in self.trained.trainable.items()}

    def go_back_to_validated(self) -> None:
        """Put the parameters of the last validation back."""
        with torch.no_grad():
            for name, value in self.validated.items():
                self.trained.trainable[name].copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint needs, by name."""
        found = {f"finite/{name}": value for name, value in self.validated.items()}
        for name, parameter in self.trained.trainable.items():
            found[f"parameter/{name}"] = parameter
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"optimizer/{key}/{name}"] = value
        if scaling := self.scaler.state_dict():
            found["scaler"] = torch.tensor([scaling["scale"], scaling["_growth_tracker"]], dtype=torch.float64)
        if self.critic is not None:
            found |= {f"critic/{name}": value for name, value in self.critic.tensors().items()}
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``tensors`` returned."""
        self.validated = {key.removeprefix("finite/"): value for key, value in tensors.items() if key.startswith("finite/")}
        with torch.no_grad():
            for name, parameter in self.trained.trainable.items():
                parameter.copy_(tensors[f"parameter/{name}"])
                for key in ("step", "exp_avg", "exp_avg_sq"):
                    if (saved := tensors.get(f"optimizer/{key}/{name}")) is not None:
                        # AdamW counts steps on the CPU; its moments live where the parameter does.
                        self.optimizer.state[parameter][key] = saved if key == "step" else saved.to(parameter.device)
        if "scaler" in tensors:
            scale, tracker = tensors["scaler"].tolist()
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": scale, "_growth_tracker": int(tracker)})
        if self.critic is not None:
            mine = {name.removeprefix("critic/"): value for name, value in tensors.items() if name.startswith("critic/")}
            self.critic.restore(mine)
