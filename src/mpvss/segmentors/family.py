"""What the families of the transformers library share."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from mpvss.errors import ModelError
from mpvss.segmentors.protocol import InputRule
from mpvss.segmentors.tensors import PixelScores, TensorPrediction

Layers = list[tuple[Float[Tensor, "B Q K1"], Float[Tensor, "B Q h w"]]]


class Family:
    """What the families share; a family says what differs.

    Attributes:
        model_class: Name of its class in the library; empty where an auto class of the library knows it.
        channels_last: Whether its weights lie channels last, which is faster where they are convolutions.
        keeps_ratio: Whether a preprocessor's fixed height and width become the shorter side, so that a video keeps its
            ratio, and sides are padded to a multiple. Otherwise images have the library's own size, without padding.
        flexible: Whether the network takes images of any size; ``None`` where its configuration says so.
        promptable: Whether its classes are texts that the user gives.
    """

    model_class = ""
    channels_last = True
    keeps_ratio = False
    flexible: bool | None = None
    promptable = False

    def network(self, config: Any) -> Any:  # noqa: ARG002 - a family overrides it
        """Return the library's class of model."""
        import transformers

        return getattr(transformers, self.model_class)

    def network_config(self, config: Any) -> Any:
        """Return the configuration of the network that is built, where the checkpoint's holds it within."""
        return config

    def predict(
        self, model: Any, pixels: Float[Tensor, "B 3 Hp Wp"], task: Int64[Tensor, "..."] | None, size: tuple[int, int]
    ) -> TensorPrediction | PixelScores:
        """Run the library's forward pass.

        Args:
            model: The library's model.
            pixels: Normalised and padded.
            task: What ``task_tokens`` gave.
            size: Height and width of the image before padding.
        """
        raise NotImplementedError

    def fast_predict(self, model: Any) -> Callable[..., TensorPrediction] | None:  # noqa: ARG002 - a family overrides it
        """Return a faster way to the same numbers, called as ``predict``; ``None`` where there is none."""
        return None

    def predict_next(
        self,
        model: Any,  # noqa: ARG002
        pixels: Float[Tensor, "T 3 Hp Wp"],  # noqa: ARG002
        carried: Float[Tensor, "1 Q D"] | None,  # noqa: ARG002
    ) -> tuple[PixelScores, Float[Tensor, "1 Q D"]] | None:
        """Run the next images of a video, in order, where a network carries queries from one to the next.

        Args:
            model: The library's model.
            pixels: Normalised and padded.
            carried: What the call before returned; ``None`` at the beginning.

        Returns:
            The prediction, and what the next call is given; ``None`` where nothing is carried.
        """
        return None

    def layers(self, model: Any, pixels: Float[Tensor, "B 3 Hp Wp"]) -> tuple[Layers, Float[Tensor, "B Q D"]]:  # noqa: ARG002
        """Return class and mask logits of each decoder layer, the last one last, and the final query embeddings.

        Raises:
            ModelError: The family cannot be trained.
        """
        raise ModelError(f"training knows the families mask2former and maskformer, got {model.config.model_type!r}")

    def query_shape(self, config: Any) -> tuple[int, int]:  # noqa: ARG002
        """Return the width of a query embedding and the number of queries; zeros where no queries are returned."""
        return 0, 0

    def adapt_rule(self, rule: InputRule, settings: dict[str, Any], config: Any) -> InputRule:  # noqa: ARG002
        """Change what the preprocessor's settings say where the network needs another size."""
        return rule

    def task_tokens(self, model_id: str, config: Any, prompts: tuple[str, ...]) -> Int64[Tensor, "..."] | None:  # noqa: ARG002
        """Return the ids of the text that the network reads besides the image."""
        return None

    def class_names(self, config: Any, prompts: tuple[str, ...]) -> dict[int, str]:  # noqa: ARG002
        """Return the names of the classes by their ids."""
        names: dict[int, str] = config.id2label
        return names
