"""Tests of `keifu.text`."""
