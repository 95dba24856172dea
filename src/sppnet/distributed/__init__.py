"""Prediction and feature extraction on Ray."""
