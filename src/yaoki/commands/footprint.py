"""What a run takes, as `yaoki plan` reports it. Without torch, so that the command line can import it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Network:
    """The size of a trained network. Exact."""

    source: str
    num_parameters: int
    """Tied weights count once."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Estimated device memory of one worker, in bytes.

    The learner's tensors are always on the device or, with `train.offload`, not while generating. vLLM frees
    its memory while training; the transformers engine keeps its copy of the policy.
    """

    weights_bytes: int
    """4 bytes a parameter of policy and critic, divided by the number of workers."""
    moments_bytes: int
    """8 bytes a parameter, divided likewise."""
    reference_bytes: int
    """4 bytes a parameter of the policy, divided likewise; 0 without a reference."""
    engine_weights_bytes: int
    """The engine's copy of the policy, unsharded: 4 bytes a parameter. vLLM's is in `train.precision` and
    divided by `engine.tensor_parallel`."""
    cache_bytes: int
    """Key/value cache while generating: layers x 2 x completions x columns x width of the key heads x 4,
    where the columns are those of a slab that grows by half whenever it is full. vLLM's cache is in
    `train.precision` and divided like its weights; this is what it can use, vLLM reserves all it may."""
    gradients_bytes: int
    """4 bytes a parameter of the network in training, divided by the number of workers."""
    gathered_bytes: int
    """Unsharded weights and gradients of that network at one time: embeddings, head and two layers, in
    `train.precision`. 0 for one worker in float32, which computes with its own weights."""
    activations_bytes: int
    """Activations kept for the backward pass of one micro-batch."""

    learner_offloads: bool
    """`train.offload` is set."""
    engine_sleeps: bool
    """The engine is vLLM, which frees its memory while training."""

    @property
    def learner_bytes(self) -> int:
        """Weights, moments and reference."""
        return self.weights_bytes + self.moments_bytes + self.reference_bytes

    @property
    def update_bytes(self) -> int:
        """What an update allocates on top of `learner_bytes`."""
        return self.gradients_bytes + self.gathered_bytes + self.activations_bytes

    @property
    def generating_bytes(self) -> int:
        """In use while completions are sampled."""
        engine_bytes = self.engine_weights_bytes + self.cache_bytes
        return engine_bytes if self.learner_offloads else engine_bytes + self.learner_bytes

    @property
    def pushing_bytes(self) -> int:
        """In use while the learner's weights are copied to the engine."""
        return self.learner_bytes + self.engine_weights_bytes

    @property
    def updating_bytes(self) -> int:
        """In use while training, when there is no key/value cache."""
        training_bytes = self.learner_bytes + self.update_bytes
        return training_bytes if self.engine_sleeps else training_bytes + self.engine_weights_bytes

    @property
    def peak_bytes(self) -> int:
        """The largest of the three."""
        return max(self.generating_bytes, self.pushing_bytes, self.updating_bytes)


@dataclass(frozen=True, slots=True)
class Plan:
    """All figures of `yaoki plan`."""

    algorithm: str
    num_workers: int
    policy: Network
    critic: Network | None
    memory: Memory
    start_host_bytes: int
    """Host memory that rank 0 needs at the start of a fresh run, to load one network at a time: 4 bytes a
    parameter of the larger one. On top of `memory` if it trains on the CPU; not needed on a resume."""
    checkpoint_bytes: int
    """All tensor files of one checkpoint, moments included. Exact for one worker; with several, each file is
    counted with a header of full size, which is some kilobytes too many. Without state.json and
    manifest.json, which are small."""
    checkpoint_s: float
    """Time to write it at the given disk bandwidth, which all workers share."""
    num_completions: int
    """Completions a step."""
    max_tokens: int
    """Response tokens a step if no completion ends early: completions x engine.max_new_tokens."""
    max_journal_bytes: int
    """Journal a step, at about 7 bytes for each of these tokens."""
