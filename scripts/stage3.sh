#!/usr/bin/env bash
# Usage: bash scripts/stage3.sh [--config FILE] [key=value ...]
#
# Trains stage 3; by default as published (scripts/configs/vicuna_7b/stage3.yaml), on every GPU of this machine.
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch_stage.sh" 3 "$@"
