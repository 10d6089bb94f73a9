"""Every option of a run, typed; read from YAML and `section.key=value`; one YAML file a run."""
