"""What makes some machines faster. Everything works without it, and `params.yaml` or an option leaves each part out.

- `precision`: bf16 where a timed product is at least 1.3 times as fast in it (`precision: fp32` leaves it out).
- `compilation`: torch.compile of the networks in training, by default on a GPU (`compile: off`).
- `cuda_graphs`: on a GPU a step of one code is some hundred small kernels, which are done sooner than Python has
  launched them. Recorded once as a CUDA graph and replayed, a step of the paper's transformer took 1.4 ms instead of
  13 ms on one H100 (`SampleOptions.recorded = False`).
"""
