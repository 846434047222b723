"""Transferable AutoML for image classification: model sharing over grouped datasets."""

__version__ = "0.1.0"
