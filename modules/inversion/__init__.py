"""From a clip to its noise: INR Smooth's relation, files of inversions, how stable they are."""
