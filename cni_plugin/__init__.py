"""mesh-redirect: a chained CNI plugin that puts a pod's traffic through its sidecar proxy."""

__version__ = "0.1.0"
