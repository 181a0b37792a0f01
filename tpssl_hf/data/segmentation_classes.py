"""Classes, usual colors and encodings of the segmentation data sets that are known by name or layout."""

from tpssl_hf.data.masks import IGNORED, Masks, binary_masks, color_map, numbered_masks

VOC_NAMES = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]
VOC = numbered_masks(VOC_NAMES, color_map(len(VOC_NAMES)), void=[(224, 224, 192)])  # the ring around each object

_CAMVID = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "sidewalk": (0, 0, 192),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
CAMVID = numbered_masks(list(_CAMVID), list(_CAMVID.values()), void=[(0, 0, 0)])

# label id in the files, name, color; every other id is ignored
_CITYSCAPES = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
_TRAIN_IDS = {label_id: number for number, (label_id, _, _) in enumerate(_CITYSCAPES)}
CITYSCAPES = Masks(
    class_names=tuple(name for _, name, _ in _CITYSCAPES),
    palette=tuple(color for _, _, color in _CITYSCAPES),
    lookup=tuple(_TRAIN_IDS.get(value, IGNORED) for value in range(256)),
)

ISIC = binary_masks(127, ("background", "lesion"))

BY_NAME = {"camvid": CAMVID}  # of a folder or Hub data set whose files do not tell their classes
