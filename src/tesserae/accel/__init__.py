"""What makes some machines faster. Everything works without it.

- `cuda_graphs`: on a GPU a step of one code is some hundred small kernels, which are done sooner than Python has
  launched them. Recorded once as a CUDA graph and replayed, a step of the paper's transformer took 1.4 ms instead of
  13 ms on one H100. `SampleOptions.recorded` leaves it out.
- `allocation`: on Linux the C library keeps memory that a training step frees for the next step. At the paper's size,
  on two cores, that nearly halved a step of the VQGAN.
"""
