"""Checkpoints of which a complete one is there at any moment."""

from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from ..whole_file import sweep_drafts, whole_file
from .class_shards import check_sharding


@HOOKS.register_module(name='CheckpointHook')
class WholeCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook in an order that survives a stop, under its name, so that every recipe's is this one.

    First the new checkpoint, then `last_checkpoint`, which names it, then the old one goes; the same for the best one.
    MMEngine 0.10.7 removes the old one first. What a killed run left half-written is removed at the next start.

    Raises:
        ValueError: Checkpoints would fall between accumulated gradients, which no checkpoint holds.
    """

    def before_train(self, runner: Runner) -> None:
        """Checks the interval and sharded classes, and tidies up."""
        steps = runner.optim_wrapper._accumulative_counts
        counts = dict(interval=max(self.interval, 0), save_begin=self.save_begin, resumed_iteration=runner.iter)
        if not self.by_epoch and any(count % steps for count in counts.values()):
            raise ValueError(
                f'CheckpointHook: checkpoints at {counts} are not all at the end of a step of {steps} accumulated '
                f'batches (optim_wrapper.accumulative_counts). Choose multiples of {steps}, or by_epoch=True.'
            )
        check_sharding(runner)
        super().before_train(runner)
        if is_main_process():
            for folder in filter(Path.is_dir, {Path(self.out_dir), Path(runner.work_dir)}):
                for draft in [*sweep_drafts(folder, '*.pth'), *sweep_drafts(folder, 'last_checkpoint')]:
                    runner.logger.info(f'{draft} is what a stopped run left; it is removed.')

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Saves a checkpoint, and removes the oldest when it is there."""
        outdated = None
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        filename = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, filename)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            filename,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            with whole_file(Path(runner.work_dir) / 'last_checkpoint', 'x') as file:
                file.write(self.last_ckpt)
            if outdated is not None:
                self._remove(self.file_backend.join_path(self.out_dir, outdated))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """Saves the best checkpoint, and removes the one before when it is there: it is hidden from MMEngine."""
        if not self.save_best:
            return
        single = len(self.key_indicators) == 1
        before = {'': self.best_ckpt_path} if single else dict(self.best_ckpt_path_dict)
        if single:
            self.best_ckpt_path = None
        else:
            self.best_ckpt_path_dict = dict.fromkeys(before)
        super()._save_best_checkpoint(runner, metrics)
        now = {'': self.best_ckpt_path} if single else self.best_ckpt_path_dict
        for name, old in before.items():
            if now[name] is None:
                now[name] = old
            elif old not in (None, now[name]) and is_main_process():
                self._remove(old)
        if single:
            self.best_ckpt_path = now['']

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
