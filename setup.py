"""Builds the native kernels beside the package; without a compiler the package installs without."""

from setuptools import Extension, setup

FOLDER = "keifu/nn/kernels"
SOURCES = ["tape", "pool", "pack", "isa_generic", "isa_avx2", "isa_avx512"]
HEADERS = ["simd", "tile", "ops", "pool", "isa", "unpack", "linear", "rowops", "attend"]
# Loaded with ctypes: no Python in it, so one build serves every version.
NATIVE = Extension(
    "keifu.nn.kernels._native",
    sources=[f"{FOLDER}/{name}.c" for name in SOURCES],
    depends=[f"{FOLDER}/{name}.h" for name in HEADERS],
    extra_compile_args=[
        "-std=gnu11",
        "-O3",
        "-g0",
        "-fvisibility=default",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-Wno-psabi",
    ],
    libraries=["pthread", "m"],
    optional=True,
)

setup(ext_modules=[NATIVE])
