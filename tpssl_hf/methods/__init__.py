"""Methods: one file, one ``nn.Module`` whose forward returns a dictionary of losses."""
