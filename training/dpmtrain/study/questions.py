"""What readers are asked of each set (section 2.8 of the source paper)."""

# name in files -> what the reader sees
QUESTIONS = {
    "grey_matter": "Grey matter",
    "white_matter": "White matter",
    "ventricles": "Ventricles",
    "snr": "SNR",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "artefacts": "Artefacts",
    "overall": "Overall quality",
}
SCORES = {1: "non-diagnostic", 2: "poor", 3: "acceptable", 4: "good", 5: "excellent"}
STANDARD, ACCELERATED = ARMS = ("standard", "accelerated")
