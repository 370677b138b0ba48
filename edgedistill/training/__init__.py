"""One loop and the stages that use it: pretrain, distill, evaluate, baselines."""
