"""Builds the native kernels beside the package; without a compiler the package installs without."""

from setuptools import Extension, setup

FOLDER = "keifu/nn/kernels"
SOURCES = ["tape", "pool", "pack", "draw", "stride", "isa_generic", "isa_avx2", "isa_avx512"]
HEADERS = [
    "simd",
    "tile",
    "ops",
    "pool",
    "isa",
    "unpack",
    "linear",
    "rowops",
    "tiles_of_state",
    "attend",
    "attend_tiles",
    "attend_rows",
    "attention",
    "activations",
    "scan",
    "scans",
    "recurrences",
    "draw",
]
VECTOR_SOURCES = ["vectors", "vectors_generic", "vectors_avx2", "vectors_avx512"]
SCAN_SOURCES = ["scans", "scans_generic", "scans_avx2", "scans_avx512"]
SCAN_HEADERS = ["simd", "activations", "scan", "scans", "scans_isa"]
TRAIN_SOURCES = ["train", "train_generic", "train_avx2", "train_avx512"]
FLAGS = [
    "-std=gnu11",
    "-O3",
    "-g0",
    "-fvisibility=default",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
]
# Loaded with ctypes: no Python in it, so one build serves every version.
NATIVE = Extension(
    "keifu.nn.kernels._native",
    sources=[f"{FOLDER}/{name}.c" for name in SOURCES],
    depends=[f"{FOLDER}/{name}.h" for name in HEADERS],
    extra_compile_args=FLAGS,
    libraries=["pthread", "m"],
    optional=True,
)

# Training word vectors: a library of its own, which a server never loads.
VECTORS = Extension(
    "keifu.nn.kernels._vectors",
    sources=[f"{FOLDER}/{name}.c" for name in VECTOR_SOURCES],
    depends=[f"{FOLDER}/{name}.h" for name in ("simd", "vectors", "words")],
    extra_compile_args=FLAGS,
    libraries=["m"],
    optional=True,
)

# Scans of state-space models, where no gradient is asked for.
SCANS = Extension(
    "keifu.nn.kernels._scans",
    sources=[f"{FOLDER}/{name}.c" for name in SCAN_SOURCES],
    depends=[
        f"{FOLDER}/{name}.h" for name in ("simd", "activations", "scan", "scans", "scans_isa")
    ],
    extra_compile_args=FLAGS,
    libraries=["m"],
    optional=True,
)

# What stands between the products of training in bfloat16.
TRAIN = Extension(
    "keifu.nn.kernels._train",
    sources=[f"{FOLDER}/{name}.c" for name in TRAIN_SOURCES],
    depends=[f"{FOLDER}/{name}.h" for name in ("simd", "train", "train_isa")],
    extra_compile_args=FLAGS,
    libraries=["m"],
    optional=True,
)

setup(ext_modules=[NATIVE, VECTORS, SCANS, TRAIN])
