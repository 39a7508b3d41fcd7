"""Virtual clock, network and disks; fault schedules and checks after every event."""
