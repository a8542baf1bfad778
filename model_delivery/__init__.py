"""The core of Model Delivery: specs, sources, targets, places and the release protocol.
It knows neither Prefect nor Locust.
"""
