"""Detections on the frames of a video, by PyAV (the extra `video`)."""

import numpy as np

from rethink_tf import files
from rethink_tf.data.sources.image_files import UnusableError


def _av():
    try:
        import av
    except ImportError as error:
        raise UnusableError(
            "no_reader_of_videos", "PyAV is not installed: pip install 'rethink_tf[video]'"
        ) from error
    return av


def run(path, output, show, max_pixels):
    """Writes a video of what a function makes of each frame.

    Args:
        path: str, the video.
        output: str, the MP4 file to write; whole or not at all.
        show: callable of a frame uint8 [H, W, 3], RGB, and its number, returns uint8 [h, w, 3].
        max_pixels: int, of the largest frame that is read.

    Returns:
        int, frames.

    Raises:
        UnusableError: (reason, detail), if the file is no video that can be read.
    """
    av = _av()
    count = 0
    try:
        with (
            av.open(path) as source,
            files.replacing(output) as temporary,
            av.open(temporary, "w", format="mp4") as target,
        ):
            stream = source.streams.video[0]
            stream.thread_type = "AUTO"
            if stream.width * stream.height > max_pixels:
                raise UnusableError(
                    "image_huge", f"{stream.height} x {stream.width} pixels a frame"
                )
            encoded = None
            for frame in source.decode(stream):
                picture = np.ascontiguousarray(show(frame.to_ndarray(format="rgb24"), count))
                # The codec takes even sides.
                picture = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
                if encoded is None:
                    encoded = target.add_stream("libx264", rate=stream.average_rate or 25)
                    encoded.height, encoded.width = picture.shape[:2]
                    encoded.pix_fmt = "yuv420p"
                drawn = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                target.mux(encoded.encode(drawn))
                count += 1
            if encoded is None:
                raise UnusableError("image_unreadable", "it has no frame")
            target.mux(encoded.encode())
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise UnusableError("image_unreadable", f"{type(error).__name__}: {error}") from error
    return count
