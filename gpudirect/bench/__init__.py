"""Measurements, their statistics, and reports."""
