"""XLA's settings for tests: tiny models, where compiling well costs far more than running badly."""

import importlib.metadata
import os

FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later versions have no choice
    FLAGS += " --xla_cpu_use_fusion_emitters=false"  # a third less of compiling
ONE_DEVICE = os.environ | {"XLA_FLAGS": FLAGS}  # of a process that a test starts
