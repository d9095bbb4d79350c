package machine

import (
	"fmt"
	"strings"
)

// uidRange is how many UIDs a user namespace has.
const uidRange = 65536

// userNamespaceArgs: the overlay shows the machine's owners already, and an
// overlay cannot be ID-mapped (EINVAL, systemd#25886), hence "off". A directory
// that runs in place is mapped by nspawn.
func (r Root) userNamespaceArgs(h Host) []string {
	if !r.UserNamespace {
		return []string{"--private-users=no"}
	}
	ownership := "off"
	if r.InPlace {
		ownership = "map"
	}
	return []string{
		fmt.Sprintf("--private-users=%d:%d", h.UIDBase, uidRange),
		"--private-users-ownership=" + ownership,
	}
}

func capabilityArgs(s Spec) []string {
	return optional("--capability=", strings.Join(s.Capabilities, ","))
}

// addressFamilyArgs: without it nspawn announces a future default on stderr (262).
func addressFamilyArgs(h Host) []string {
	if h.Version < 261 {
		return nil
	}
	return []string{"--restrict-address-families="}
}
