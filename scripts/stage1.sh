#!/usr/bin/env bash
# Usage: bash scripts/stage1.sh [--config FILE] [key=value ...]
#
# Trains stage 1; by default as published (scripts/configs/vicuna_7b/stage1.yaml), on every GPU of this machine.
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch_stage.sh" 1 "$@"
