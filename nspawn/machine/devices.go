package machine

import "nomad-driver-nspawn/nspawn/systemd"

type deviceRule struct{ Device, Access string }

// deviceProperties are as those of systemd-nspawn@.service, without the block
// devices that only disk images need.
func deviceProperties() []systemd.Property {
	return []systemd.Property{
		systemd.NewProperty("DevicePolicy", "closed"),
		systemd.NewProperty("DeviceAllow", []deviceRule{
			{"/dev/fuse", "rwm"},
			{"/dev/net/tun", "rwm"},
			{"char-pts", "rw"},
		}),
	}
}
