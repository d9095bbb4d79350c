package machine

import "nomad-driver-nspawn/nspawn/systemd"

// Device is a device of the host that the machine may use.
type Device struct {
	Source      string // path of the device node on the host
	Destination string
	Access      string // any of r, w and m: read, write, mknod
}

type deviceRule struct{ Device, Access string }

// deviceProperties returns the properties that allow the machine to use devices. Beside
// the job's devices, it may use the same ones as systemd-nspawn@.service allows, except
// for the block devices, which only disk images need.
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
