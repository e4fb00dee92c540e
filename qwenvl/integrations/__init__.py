"""Other libraries' doors to this model, one file each; each library is optional and imported nowhere else."""
