"""Clips folded into the batch axis: how many frames a UNet call holds, and which."""


def frames_per_clip(rows: int, chunks: int, num_frames: int) -> int:
    """Return the number of frames of each clip in one UNet call.

    A call holds `chunks` conditionings (two when the host joins CFG's negative and positive), each with the same
    clips: rows are `(chunks clips f)`, f fastest.

    Args:
        rows: size of the batch axis of the call.
        chunks: number of conditionings joined in it, at least 1.
        num_frames: frames per clip, 0 = all rows of one conditioning are one clip.

    Raises:
        ValueError: the rows do not divide into conditionings or clips.
    """
    if rows % chunks:
        raise ValueError(f"A batch of {rows} rows does not divide into {chunks} conditionings.")
    per_chunk = rows // chunks
    if num_frames == 0:
        return per_chunk
    if per_chunk % num_frames:
        raise ValueError(
            f"The latent batch has {per_chunk} frames, which does not divide into clips of num_frames = {num_frames}. "
            f"Set num_frames of Inflate UNet to 0 (the whole batch is one clip) or to a divisor of {per_chunk}."
        )
    return num_frames
