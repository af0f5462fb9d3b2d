"""DeepCache for ComfyUI: the mappings that ComfyUI loads nodes from."""

from DeepCache.comfyui.nodes import DeepCacheNode, DeepCacheReportNode

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

NODE_CLASS_MAPPINGS = {"DeepCacheUNet": DeepCacheNode, "DeepCacheReport": DeepCacheReportNode}
NODE_DISPLAY_NAME_MAPPINGS = {"DeepCacheUNet": "DeepCache", "DeepCacheReport": "DeepCache Report"}
