"""The eight pipelines on the built-in model: what comes out, what is kept, what each argument does."""

import wave

import pytest
import torch
from tests.ltx_pipelines.media.making_media import clip_with_late_sound

from ltx_core.components.guiders import MultiModalGuiderFactory, MultiModalGuiderParams
from ltx_core.errors import InputError
from ltx_core.model.audio_vae.processor import resample
from ltx_core.types import Audio
from ltx_pipelines import (
    A2VidPipelineTwoStage,
    DistilledPipeline,
    ICLoraPipeline,
    KeyframeInterpolationPipeline,
    RetakePipeline,
    TI2VidOneStagePipeline,
    TI2VidTwoStagesHQPipeline,
    TI2VidTwoStagesPipeline,
)
from ltx_pipelines.engine import Engine
from ltx_pipelines.events import Cancelled
from ltx_pipelines.media.audio import decode_audio_from_file
from ltx_pipelines.media.video import decode_video_from_file, probe_video
from ltx_pipelines.media.writer import encode_video
from ltx_pipelines.sources import encode_source
from ltx_pipelines.utils.args import ImageConditioningInput
from ltx_pipelines.utils.model_paths import ModelPaths
from ltx_pipelines.utils.samplers import gradient_estimating_euler_denoising_loop

SMALL = {"height": 64, "width": 128, "num_frames": 9, "seed": 5}
GUIDED = (
    TI2VidOneStagePipeline,
    TI2VidTwoStagesPipeline,
    TI2VidTwoStagesHQPipeline,
    KeyframeInterpolationPipeline,
)


@pytest.fixture(scope="module")
def engine(model_folder) -> Engine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENLTX_MINIATURE", str(model_folder))
        return Engine.open(ModelPaths())


def frames(result) -> torch.Tensor:
    return torch.cat(list(result.video))


def final_latents(pipeline, *arguments, **keywords):
    """The (video, audio) latents of the last stage."""
    results = []
    pipeline(*arguments, **keywords, callback=lambda event: results.append(event.result) and None)
    return next(result for result in reversed(results) if result is not None)


@pytest.mark.parametrize("pipeline", [*GUIDED, DistilledPipeline])
def test_text_becomes_a_video_with_sound_of_its_length(engine, pipeline):
    video, audio = pipeline(engine=engine)("a ball", **SMALL)
    pixels = torch.cat(list(video))
    assert pixels.shape == (9, 64, 128, 3)
    assert pixels.dtype == torch.uint8
    assert audio.waveform.shape[0] == 2
    seconds = audio.waveform.shape[1] / audio.sampling_rate
    assert seconds == pytest.approx(9 / engine.params.frame_rate, abs=0.05)


def test_the_video_can_be_read_twice(engine, monkeypatch):
    decode = engine.decode_video

    def drawing(latent, tiling, generator):
        """As decoders do that add noise; the random model's adds none."""
        return decode(latent + torch.randn(latent.shape, generator=generator), tiling, generator)

    monkeypatch.setattr(engine, "decode_video", drawing)
    result = DistilledPipeline(engine=engine)("a ball", **SMALL)
    assert torch.equal(frames(result), frames(result))


def test_a_video_that_was_read_in_part_is_saved_whole(engine, tmp_path):
    result = DistilledPipeline(engine=engine)("a ball", **SMALL | {"num_frames": 25})
    assert len(next(result.video)) < 25
    assert probe_video(result.save(tmp_path / "whole.mp4")).frames == 25


def test_a_video_is_saved_under_any_name_but_one_that_is_none(engine, tmp_path):
    result = DistilledPipeline(engine=engine)("a ball", **SMALL)
    assert result.save(tmp_path / "whole.avi").exists()
    with pytest.raises(InputError, match="path is of type int; give its path, as a text or a Path"):
        result.save(3)


def test_a_video_that_could_not_be_saved_can_be_read_whole(engine, tmp_path):
    result = DistilledPipeline(engine=engine)("a ball", **SMALL | {"num_frames": 25})
    with pytest.raises(Cancelled):
        result.save(tmp_path / "part.mp4", callback=lambda event: False)
    assert len(frames(result)) == 25


@pytest.mark.parametrize("change", [{"seed": 6}, {"prompt": "a cube"}, {"frame_rate": 24.0}])
def test_a_change_changes_the_result_and_nothing_else_does(engine, change):
    pipeline = TI2VidOneStagePipeline(engine=engine)
    asked = {"prompt": "a ball", "num_inference_steps": 2} | SMALL
    first, again, changed = (final_latents(pipeline, **a)[0].latent for a in (asked, asked, asked | change))
    assert torch.equal(first, again)
    assert not torch.equal(first, changed)


@pytest.mark.parametrize("pipeline", [*GUIDED, DistilledPipeline])
def test_a_picture_at_frame_0_and_a_later_one_each_change_the_video(engine, pipeline, picture):
    make = pipeline(engine=engine)
    none, start, later = (
        final_latents(make, "a ball", images=images, **SMALL)[0].latent
        for images in ([], [ImageConditioningInput(str(picture), 0, 1.0)], [(str(picture), 8, 1.0)])
    )
    assert none.shape == start.shape == later.shape
    assert not torch.equal(none, start)
    assert not torch.equal(none, later)


def test_a_picture_at_frame_0_is_the_first_latent_frame(engine, picture):
    latent = final_latents(
        TI2VidOneStagePipeline(engine=engine), "a ball", images=[(str(picture), 0, 1.0, 0)], **SMALL
    )[0].latent
    from ltx_pipelines.media.images import load_image_conditioning

    pixels = load_image_conditioning(picture, 64, 128, torch.float32, "cpu", 0)
    assert torch.allclose(latent[:, :, :1], engine.encode_video(pixels), atol=1e-6)


def test_keyframes_guide_and_are_not_copied(engine, picture):
    pictures = [(str(picture), 0, 1.0), (str(picture), 8, 1.0)]
    recipe = KeyframeInterpolationPipeline(engine=engine)("a ball", images=pictures, dry_run=True, **SMALL)
    assert [stage.video.conditions[0].tokens(stage.shape) for stage in recipe.stages] == [
        2 * 1 * 2,
        2 * 2 * 4,
    ]
    recipe = TI2VidTwoStagesPipeline(engine=engine)("a ball", images=pictures, dry_run=True, **SMALL)
    assert recipe.stages[1].video.conditions[0].tokens(recipe.stages[1].shape) == 1 * 2 * 4


class TestGuidance:
    def latents(self, engine, video=None, audio=None, **more):
        off = MultiModalGuiderParams(cfg_scale=1.0, stg_scale=0.0, rescale_scale=0.0, modality_scale=1.0)
        return final_latents(
            TI2VidOneStagePipeline(engine=engine),
            "a ball",
            num_inference_steps=3,
            video_guider_params=video or off,
            audio_guider_params=audio or off,
            **{**SMALL, **more},
        )

    @pytest.mark.parametrize(
        "params",
        [
            {"cfg_scale": 4.0},
            {"cfg_scale": 1.0, "stg_scale": 1.0, "stg_blocks": [0]},
            {"cfg_scale": 1.0, "modality_scale": 3.0},
            {"cfg_scale": 4.0, "rescale_scale": 0.7},
        ],
        ids=["cfg", "stg", "modality", "rescale"],
    )
    def test_each_kind_steers_the_stream_it_is_set_for(self, engine, params):
        plain, video, audio = (
            self.latents(engine),
            self.latents(engine, video=MultiModalGuiderParams(**params)),
            self.latents(engine, audio=MultiModalGuiderParams(**params)),
        )
        assert not torch.equal(video[0].latent, plain[0].latent)
        assert not torch.equal(audio[1].latent, plain[1].latent)

    def test_skipped_steps_cost_no_pass(self, engine, pass_counts):
        skipping = MultiModalGuiderParams(cfg_scale=3.0, skip_step=1)
        self.latents(engine, video=skipping, audio=skipping)
        assert sum(pass_counts) == 2 * 2  # of three steps the second is skipped

    def test_a_factory_varies_the_parameters_with_sigma(self, engine):
        weak, strong = MultiModalGuiderParams(cfg_scale=2.0), MultiModalGuiderParams(cfg_scale=6.0)
        varied = MultiModalGuiderFactory.from_dict({0.5: weak, 1.0: strong})
        results = [self.latents(engine, video=guider)[0].latent for guider in (weak, strong, varied)]
        assert not torch.equal(results[2], results[0])
        assert not torch.equal(results[2], results[1])

    def test_the_negative_prompt_counts_only_with_cfg(self, engine):
        cfg = MultiModalGuiderParams(cfg_scale=3.0)
        off = MultiModalGuiderParams(cfg_scale=1.0)
        with_cfg = [self.latents(engine, cfg, cfg, negative_prompt=text)[0].latent for text in ("a", "b")]
        without = [self.latents(engine, off, off, negative_prompt=text)[0].latent for text in ("a", "b")]
        assert not torch.equal(*with_cfg)
        assert torch.equal(*without)


class TestSamplers:
    @pytest.mark.parametrize("sampler", ["gradient-estimation", "res2s", "euler-ancestral"])
    def test_each_gives_another_finite_result(self, engine, sampler):
        pipeline = TI2VidOneStagePipeline(engine=engine)
        asked = {"num_inference_steps": 3} | SMALL
        euler = final_latents(pipeline, "a ball", sampler="euler", **asked)[0].latent
        other = final_latents(pipeline, "a ball", sampler=sampler, **asked)[0].latent
        assert torch.isfinite(other).all()
        assert not torch.equal(euler, other)

    def test_gamma_changes_the_result(self, engine):
        pipeline = TI2VidOneStagePipeline(engine=engine)
        asked = {"num_inference_steps": 3, "sampler": "gradient-estimation"} | SMALL
        results = [final_latents(pipeline, "a ball", ge_gamma=g, **asked)[0].latent for g in (1.0, 2.0)]
        assert not torch.equal(*results)

    def test_a_loop_of_ones_own_runs_in_place_of_a_named_sampler(self, engine):
        def loop(sigmas, video_state, audio_state, stepper, denoise_fn):
            return gradient_estimating_euler_denoising_loop(
                sigmas=sigmas,
                video_state=video_state,
                audio_state=audio_state,
                stepper=stepper,
                denoise_fn=denoise_fn,
                ge_gamma=2.0,
            )

        pipeline = TI2VidOneStagePipeline(engine=engine)
        asked = {"num_inference_steps": 3} | SMALL
        own = final_latents(pipeline, "a ball", denoising_loop=loop, **asked)[0].latent
        named = final_latents(pipeline, "a ball", sampler="gradient-estimation", **asked)[0].latent
        assert torch.allclose(own, named, atol=1e-6)

    def test_an_unknown_one_is_named(self, engine):
        with pytest.raises(InputError, match="'ddim'; choose euler, gradient-estimation"):
            DistilledPipeline(engine=engine)("a ball", sampler="ddim", **SMALL)


class TestAudioToVideo:
    def test_the_given_waveform_comes_out(self, engine, sound):
        result = A2VidPipelineTwoStage(engine=engine)(
            "a ball", audio_path=sound, audio_max_duration=0.75, **SMALL
        )
        given = decode_audio_from_file(sound, "cpu", 0.0, 0.75)
        assert torch.equal(result.audio.waveform, given.waveform[0])
        assert result.audio.sampling_rate == 22050

    def test_the_sound_moves_the_picture(self, engine, sound, clip):
        pipeline = A2VidPipelineTwoStage(engine=engine)
        one, other = (
            final_latents(pipeline, "a ball", audio_path=path, **SMALL)[0] for path in (sound, clip)
        )
        assert not torch.equal(one.latent, other.latent)

    def test_a_later_start_is_another_part(self, engine, clip):
        pipeline = A2VidPipelineTwoStage(engine=engine)
        results = [
            pipeline("x", audio_path=clip, audio_start_time=t, **SMALL).audio.waveform for t in (0.0, 0.3)
        ]
        assert results[0].shape[-1] > results[1].shape[-1]

    def test_a_short_sound_goes_on_in_silence_and_says_so(self, engine, clip, caplog):
        A2VidPipelineTwoStage(engine=engine)("x", audio_path=clip, **{**SMALL, "num_frames": 17})
        assert "silence follows" in caplog.text
        click = A2VidPipelineTwoStage(engine=engine)("x", audio_path=clip, audio_max_duration=0.001, **SMALL)
        assert click.audio.waveform.shape == (2, 48)

    def test_many_channels_are_mixed_down(self, engine, tmp_path):
        samples = torch.rand(12, 16000).sub(0.5).mul(20000).short()
        with wave.open(str(tmp_path / "many.wav"), "wb") as file:
            file.setparams((12, 2, 16000, 0, "NONE", ""))
            file.writeframes(samples.T.contiguous().numpy().tobytes())
        result = A2VidPipelineTwoStage(engine=engine)("x", audio_path=tmp_path / "many.wav", **SMALL)
        mixed = samples.float().unflatten(0, (6, 2)).mean(0) / 32768
        assert torch.allclose(result.audio.waveform, mixed[:, : result.audio.waveform.shape[1]], atol=1e-6)
        result.save(tmp_path / "video.mp4")

    def test_a_single_frame_is_enough(self, engine, sound):
        size = {**SMALL, "num_frames": 1, "frame_rate": 40.0}
        pipeline = A2VidPipelineTwoStage(engine=engine)
        recipe = pipeline("x", audio_path=sound, audio_max_duration=1 / 40, dry_run=True, **size)
        assert encode_source(engine, recipe).audio.shape[2] == 1

    def test_a_sound_that_suffices_is_taken_as_it_is(self, engine, sound, caplog):
        """Two seconds make the 51 latents of 49 frames at 24/s, which last 2.04 s."""
        size = {**SMALL, "num_frames": 49, "frame_rate": 24.0}
        recipe = A2VidPipelineTwoStage(engine=engine)("x", audio_path=sound, dry_run=True, **size)
        latent = encode_source(engine, recipe).audio
        assert torch.equal(latent, engine.encode_audio(decode_audio_from_file(sound)))
        assert not caplog.records

    def test_without_a_sound_there_is_a_sentence(self, engine):
        with pytest.raises(InputError, match="audio_path"):
            A2VidPipelineTwoStage(engine=engine)("x", **SMALL)


class TestRetake:
    def source(self, engine, clip):
        from ltx_pipelines.recipe import Source
        from ltx_pipelines.sources import encode_source

        recipe = RetakePipeline(engine=engine)(clip, "x", 0.0, 0.3, dry_run=True)
        assert recipe.source == Source(video_path=str(clip))
        return encode_source(engine, recipe)

    def test_sound_from_before_the_picture_is_left_out(self, engine, tmp_path, monkeypatch):
        heard, encode = [], engine.encode_audio
        monkeypatch.setattr(engine, "encode_audio", lambda sound: heard.append(sound) or encode(sound))
        self.source(engine, clip_with_late_sound(tmp_path / "early.mkv", -0.1))
        assert (heard[0].waveform == 0.5).sum() == pytest.approx(0.15 * 16000, abs=16)

    @pytest.mark.parametrize("distilled", [False, True])
    def test_outside_the_window_latents_are_the_source_bit_by_bit(self, engine, clip, distilled):
        source = self.source(engine, clip)
        video, audio = final_latents(
            RetakePipeline(engine=engine), clip, "x", 0.4, 0.75, 1, num_inference_steps=2, distilled=distilled
        )
        assert torch.equal(video.latent[:, :, :1], source.video[:, :, :1])
        assert not torch.equal(video.latent[:, :, 1:], source.video[:, :, 1:])
        assert torch.equal(audio.latent[:, :, :8], source.audio[:, :, :8])
        assert not torch.equal(audio.latent[:, :, 12:], source.audio[:, :, 12:])

    def test_only_a_distilled_retake_asks_for_the_built_in_distillation(self, clip):
        guided = RetakePipeline()
        distilled = RetakePipeline(distilled=True, engine=guided.engine)
        for pipeline, asked, wanted in (
            (guided, None, False),
            (guided, True, True),
            (distilled, None, True),
            (distilled, False, False),
        ):
            stage = pipeline(clip, "x", 0.0, 0.3, distilled=asked, dry_run=True).stages[0]
            assert stage.loras == (pipeline.engine.distillation if wanted else ())
            assert (stage.guidance is None) is wanted
        assert guided.engine.distillation

    def test_a_negative_seed_is_a_random_one(self, engine, clip, monkeypatch):
        monkeypatch.setattr("ltx_pipelines.retake.random_seed", lambda: 77)
        retake = RetakePipeline(engine=engine)
        seeds = [retake(clip, "x", 0.0, 0.3, seed, dry_run=True).seed for seed in (-1, 0, 5, None)]
        assert seeds == [77, 0, 5, engine.params.seed]

    def test_a_kept_stream_is_the_source(self, engine, clip):
        source = self.source(engine, clip)
        asked = {"num_inference_steps": 2}
        kept = final_latents(
            RetakePipeline(engine=engine), clip, "x", 0, 0.75, 1, regenerate_video=False, **asked
        )
        assert torch.equal(kept[0].latent, source.video)
        assert not torch.equal(kept[1].latent, source.audio)
        kept = final_latents(
            RetakePipeline(engine=engine), clip, "x", 0, 0.75, 1, regenerate_audio=False, **asked
        )
        assert torch.equal(kept[1].latent, source.audio)

    @pytest.mark.parametrize(
        ("window", "sentence"),
        [
            ((0.5, 0.5), "The window from 0.5 s to 0.5 s is empty"),
            ((0.6, 0.5), "start_time must be before end_time"),
            ((-2, -1), "ends at -1 s, before the clip begins"),
        ],
    )
    def test_a_wrong_window(self, engine, clip, window, sentence):
        with pytest.raises(InputError, match=sentence):
            RetakePipeline(engine=engine)(clip, "x", *window)

    def test_a_window_after_the_end_keeps_the_clip_with_a_warning(self, engine, clip, caplog):
        source = self.source(engine, clip)
        kept = final_latents(RetakePipeline(engine=engine), clip, "x", 2, 3, 1, num_inference_steps=2)
        assert torch.equal(kept[0].latent, source.video)
        assert torch.equal(kept[1].latent, source.audio)
        assert "starts at 2 s, after the end of the clip (0.750 s)" in caplog.text

    def test_a_sound_that_is_too_short_is_continued(self, engine, clip, monkeypatch):
        from ltx_pipelines.media.audio import decode_audio_from_file

        def short(*given):
            return Audio(decode_audio_from_file(*given).waveform[..., :samples], 48000)

        monkeypatch.setattr("ltx_pipelines.sources.decode_audio_from_file", short)
        samples = 500
        source = self.source(engine, clip)
        assert source.audio.shape[2] == 19
        assert source.audio.isfinite().all()
        samples = 24000  # half a second is encoded as it is, and zeros follow
        source = self.source(engine, clip)
        sound = engine.encode_audio(short(clip))
        assert 12 <= sound.shape[2] <= 13
        assert torch.equal(source.audio[:, :, : sound.shape[2]], sound)
        assert source.audio.shape[2] == 19
        assert not source.audio[:, :, sound.shape[2] :].any()

    def test_what_is_kept_can_be_the_clip_itself(self, engine, clip):
        asked = {"start_time": 0.4, "end_time": 0.75, "seed": 1, "num_inference_steps": 2}
        retake = RetakePipeline(engine=engine)
        decoded, kept = (retake(clip, "x", **asked, keep_original=keep) for keep in (False, True))
        original, made, mixed = torch.cat(list(decode_video_from_file(clip))), frames(decoded), frames(kept)
        # The window touches the second latent frame, which is frames 1 to 8.
        assert torch.equal(mixed[:1], original[:1])
        assert torch.equal(mixed[1:], made[1:])
        assert not torch.equal(made[:1], original[:1])
        assert torch.equal(mixed, frames(kept))

        rate, wave = kept.audio.sampling_rate, kept.audio.waveform
        sound = decode_audio_from_file(clip)
        faithful = resample(sound.waveform[0], sound.sampling_rate, rate)
        before, after = round(0.2 * rate), round(0.4 * rate)
        assert wave.shape == decoded.audio.waveform.shape
        assert torch.equal(wave[:, :before], faithful[:, :before])
        assert torch.equal(wave[:, after:], decoded.audio.waveform[:, after:])
        assert not torch.allclose(decoded.audio.waveform[:, :before], faithful[:, :before], atol=0.01)

    @pytest.mark.parametrize(
        "asked", [{"start_time": 2, "end_time": 3}, {"regenerate_video": False, "regenerate_audio": False}]
    )
    def test_a_clip_that_is_kept_whole_comes_out_as_it_is_and_nothing_is_decoded(
        self, engine, clip, asked, monkeypatch
    ):
        for verb in ("decode_video", "decode_audio"):
            monkeypatch.setattr(engine, verb, lambda *_: pytest.fail("It was decoded for nothing."))
        asked = {"start_time": 0.1, "end_time": 0.5, "num_inference_steps": 1, "keep_original": True} | asked
        result = RetakePipeline(engine=engine)(clip, "x", **asked)
        assert torch.equal(frames(result), torch.cat(list(decode_video_from_file(clip))))
        sound = decode_audio_from_file(clip, max_duration=0.75)
        assert result.audio.sampling_rate == sound.sampling_rate
        assert torch.equal(result.audio.waveform, sound.waveform[0])

    def test_a_clip_that_is_made_to_fit_is_kept_as_fitted(self, engine, tmp_path):
        path = tmp_path / "odd.mp4"
        encode_video(torch.randint(0, 255, (12, 70, 100, 3), dtype=torch.uint8), 12.0, None, path)
        asked = {"fit": "pad", "num_inference_steps": 1, "keep_original": True}
        result = frames(RetakePipeline(engine=engine)(path, "x", 0.0, 0.05, 1, **asked))
        original = torch.cat(list(decode_video_from_file(path)))
        assert torch.equal(result[1:12, :70, :100], original[1:])
        assert torch.equal(result[12:], result[11:12].expand(5, -1, -1, -1))

    def test_a_clip_that_does_not_fit_can_be_made_to(self, engine, tmp_path):
        path = tmp_path / "odd.mp4"
        encode_video(torch.randint(0, 255, (12, 70, 100, 3), dtype=torch.uint8), 12.0, None, path)
        pipeline = RetakePipeline(engine=engine)
        with pytest.raises(InputError, match=r"12 frames of 100x70; .* e\.g\. 9 of 96x64"):
            pipeline(path, "x", 0.0, 0.5)
        with pytest.raises(InputError, match="crop or pad"):
            pipeline(path, "x", 0.0, 0.5, fit="trim")
        for fit, size in (("crop", (9, 64, 96, 3)), ("pad", (17, 96, 128, 3))):
            result = pipeline(path, "x", 0.0, 0.5, 1, num_inference_steps=1, fit=fit)
            assert frames(result).shape == size


class TestICLora:
    def latents(self, engine, clip, pipeline=None, **asked):
        pipeline = pipeline or ICLoraPipeline(engine=engine)
        asked = {"skip_stage_2": True, **SMALL} | asked
        return final_latents(
            pipeline, "x", video_conditioning=[(str(clip), asked.pop("strength", 1.0))], **asked
        )

    def test_the_reference_and_its_strength_count(self, engine, clip):
        full, weak = (self.latents(engine, clip, strength=s)[0].latent for s in (1.0, 0.3))
        without = final_latents(ICLoraPipeline(engine=engine), "x", skip_stage_2=True, **SMALL)[0].latent
        assert not torch.equal(full, without)
        assert not torch.equal(full, weak)

    def test_attention_strength_and_mask(self, engine, clip):
        full = self.latents(engine, clip)[0].latent
        half = self.latents(engine, clip, conditioning_attention_strength=0.5)[0].latent
        mask = torch.full((1, 1, 9, 32, 64), 0.5)
        masked = self.latents(engine, clip, conditioning_attention_mask=mask)[0].latent
        assert not torch.equal(full, half)
        assert torch.allclose(half, masked, atol=1e-5)

    def test_skipping_stage_2_leaves_half_the_size(self, engine, clip):
        half = self.latents(engine, clip)[0].latent
        full = self.latents(engine, clip, skip_stage_2=False)[0].latent
        assert [2 * side for side in half.shape[-2:]] == list(full.shape[-2:])

    @pytest.mark.parametrize("asked", [{"strength": 2.0}, {"conditioning_attention_strength": -0.1}])
    def test_strengths_out_of_range(self, engine, clip, asked):
        with pytest.raises(InputError, match="must lie between 0 and 1"):
            self.latents(engine, clip, **asked)

    def test_a_reference_that_is_shorter_or_of_another_rate_is_a_warning(self, engine, clip, caplog):
        self.latents(engine, clip, frame_rate=12.1)
        assert not caplog.records
        self.latents(engine, clip, frame_rate=24.0, num_frames=17)
        assert "has 12 frames a second, the video 24; they go one for one" in caplog.text
        assert "has 9 frames, fewer than the video's 17" in caplog.text


class TestEnhancement:
    @pytest.mark.parametrize("pipeline", [*GUIDED, DistilledPipeline, ICLoraPipeline])
    def test_it_rewrites_the_prompt(self, engine, pipeline, monkeypatch):
        asked = []
        monkeypatch.setattr(
            "ltx_pipelines.engine.generate_enhanced_prompt",
            lambda encoder, prompt, image, seed: asked.append((prompt, image, seed)) or "a cat",
        )
        make = pipeline(engine=engine)
        enhanced = final_latents(make, "a dog", enhance_prompt=True, **SMALL)[0].latent
        plain = final_latents(make, "a cat", **SMALL)[0].latent
        assert torch.equal(enhanced, plain)
        assert asked == [("a dog", None, 42 if pipeline is DistilledPipeline else SMALL["seed"])]

    def test_it_looks_at_the_first_picture(self, engine, picture, monkeypatch):
        seen = []
        monkeypatch.setattr(
            "ltx_pipelines.engine.generate_enhanced_prompt",
            lambda encoder, prompt, image, seed: seen.append(image) or prompt,
        )
        result = DistilledPipeline(engine=engine)(
            "a dog", enhance_prompt=True, images=[(str(picture), 0, 1.0)], **SMALL
        )
        assert frames(result).shape[0] == 9
        assert len(seen) == 1
        assert seen[0] is not None


class TestOfficialCalls:
    """The examples of the official README, word for word but for paths, sizes and steps."""

    def test_two_stages(self, model_folder, picture, tmp_path):
        from ltx_core.components.guiders import MultiModalGuiderParams
        from ltx_core.loader import LTXV_LORA_COMFY_RENAMING_MAP, LoraPathStrengthAndSDOps
        from ltx_pipelines.ti2vid_two_stages import TI2VidTwoStagesPipeline

        distilled_lora = [
            LoraPathStrengthAndSDOps(
                str(model_folder / "distilled-lora.safetensors"), 0.6, LTXV_LORA_COMFY_RENAMING_MAP
            ),
        ]
        pipeline = TI2VidTwoStagesPipeline(
            checkpoint_path=str(model_folder / "model.safetensors"),
            distilled_lora=distilled_lora,
            spatial_upsampler_path=str(model_folder / "upsampler.safetensors"),
            gemma_root=str(model_folder / "gemma"),
            loras=[],
        )
        guider = {
            "stg_scale": 1.0,
            "rescale_scale": 0.7,
            "modality_scale": 3.0,
            "skip_step": 0,
            "stg_blocks": [1],
        }
        output = tmp_path / "output.mp4"
        video, audio = pipeline(
            prompt="A beautiful sunset over the ocean",
            output_path=str(output),
            seed=42,
            height=64,
            width=128,
            num_frames=9,
            frame_rate=25.0,
            num_inference_steps=2,
            video_guider_params=MultiModalGuiderParams(cfg_scale=3.0, **guider),
            audio_guider_params=MultiModalGuiderParams(cfg_scale=7.0, **guider),
            images=[ImageConditioningInput(str(picture), 0, 1.0, 33)],
        )
        info = probe_video(output)
        assert (info.frames, info.width, info.height, info.fps) == (9, 128, 64, 25.0)
        assert torch.cat(list(video)).shape == (9, 64, 128, 3)
        assert audio.waveform.shape[0] == 2

    def test_both_ways_of_naming_the_files_give_the_same(self, model_folder):
        model, gemma = str(model_folder / "model.safetensors"), str(model_folder / "gemma")
        one = TI2VidOneStagePipeline(checkpoint_path=model, gemma_root=gemma, loras=[])
        monolith = TI2VidOneStagePipeline(model_paths=ModelPaths.from_monolith(model, gemma))
        split = ModelPaths.from_split(
            transformer_path=model, text_encoder_path=gemma, video_vae_path=model, audio_vae_path=model
        )
        asked = {"num_inference_steps": 1} | SMALL
        latents = [
            final_latents(p, "x", **asked)[0].latent
            for p in (one, monolith, TI2VidOneStagePipeline(model_paths=split))
        ]
        assert torch.equal(latents[0], latents[1])
        assert torch.equal(latents[0], latents[2])


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"height": 100}, r"height is 100; a two-stage video needs a multiple of 64, e\.g\. 64 or 128"),
        ({"width": -64}, "width is -64"),
        ({"num_frames": 24}, r"num_frames is 24; it must be a multiple of 8 plus 1, e\.g\. 17 or 25"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"frame_rate": -1.0}, "frame_rate is -1"),
        ({"seed": 2**70}, "seed is"),
        ({"images": [("none.png", 0, 1.0)]}, "none.png does not exist"),
    ],
)
def test_arguments_that_do_not_fit_are_named_before_any_work(engine, asked, sentence):
    events = []
    with pytest.raises((InputError, FileNotFoundError), match=sentence):
        DistilledPipeline(engine=engine)("x", **{**SMALL, **asked}, callback=events.append)
    assert not events


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ((9, 1.0), "frames 0 to 8"),
        ((-1, 1.0), "frames 0 to 8"),
        ((0, 1.5), "between 0 and 1"),
        ((0, 1.0, 99), "between 0 and 51"),
    ],
)
def test_images_out_of_range(engine, picture, image, sentence):
    with pytest.raises(InputError, match=sentence):
        DistilledPipeline(engine=engine)("x", images=[(str(picture), *image)], **SMALL)


class TestVersions:
    def newer(self, model_folder, tmp_path, version: str):
        """The random model with another version in its metadata, and without defaults of its own."""
        from safetensors.torch import load_file, save_file

        from ltx_core.loader import Checkpoint
        from ltx_pipelines.utils.constants import DEFAULTS_KEY

        source, path = model_folder / "model.safetensors", tmp_path / f"model-{version}.safetensors"
        metadata = {**Checkpoint(source).metadata, "model_version": version}
        del metadata[DEFAULTS_KEY]
        save_file(load_file(source), path, metadata=metadata)
        return DistilledPipeline(path, model_folder / "gemma", model_folder / "upsampler.safetensors")

    @pytest.mark.parametrize(("version", "name"), [("2.3.0", "euler"), ("2.5.0", "euler-ancestral")])
    def test_the_distilled_sampler_follows_the_checkpoint(self, model_folder, tmp_path, version, name):
        recipe = self.newer(model_folder, tmp_path, version)("x", dry_run=True, **SMALL)
        assert [stage.sampler.name for stage in recipe.stages] == [name, "euler"]

    @pytest.mark.parametrize(("version", "crf"), [("2.3.0", 33), ("2.4.0", 18)])
    def test_so_does_the_compression_of_pictures(self, model_folder, tmp_path, picture, version, crf):
        pipeline = self.newer(model_folder, tmp_path, version)
        images = [
            make(str(picture), 0, 1.0, *crf)
            for make in (ImageConditioningInput, lambda *values: values)
            for crf in ((), (None,), (5,))
        ]
        for either in (pipeline, TI2VidTwoStagesHQPipeline(engine=pipeline.engine)):
            recipe = either("x", images=images, dry_run=True, **SMALL)
            assert [image.crf for image in recipe.stages[0].video.conditions[0].images] == [crf, crf, 5] * 2
