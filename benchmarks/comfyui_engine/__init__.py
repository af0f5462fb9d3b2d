"""ComfyUI's engine and server, from the checkout at `COMFYUI_PATH`, for tests and benchmarks of the nodes."""
