#!/usr/bin/env bash
# Usage: bash scripts/stage2.sh [--config FILE] [key=value ...]
#
# Trains stage 2; by default as published (scripts/configs/vicuna_7b/stage2.yaml), on every GPU of this machine.
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch_stage.sh" 2 "$@"
