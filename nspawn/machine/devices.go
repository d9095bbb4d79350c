package machine

import "nomad-driver-nspawn/nspawn/systemd"

// Device is a device of the host that the machine sees.
type Device struct {
	Source      string // path of its node on the host
	Destination string
	Access      string // of r, w and m: read, write, make nodes of it
}

type deviceRule struct{ Device, Access string }

// deviceProperties let the machine at the devices that it sees. Beside those of the
// job, they are as those of systemd-nspawn@.service, without the block devices that
// only disk images need.
func deviceProperties(s Spec) []systemd.Property {
	if s.Isolation.Privileged {
		return []systemd.Property{systemd.NewProperty("DevicePolicy", "auto")}
	}
	rules := []deviceRule{
		{"/dev/fuse", "rwm"},
		{"/dev/net/tun", "rwm"},
		{"char-pts", "rw"},
	}
	for _, device := range s.Devices {
		rules = append(rules, deviceRule{device.Source, device.Access})
	}
	return []systemd.Property{
		systemd.NewProperty("DevicePolicy", "closed"),
		systemd.NewProperty("DeviceAllow", rules),
	}
}
