package machine

// identityArgs: what a machine is known by, inside.
func identityArgs(s Spec) []string {
	return append(optional("--uuid=", s.UUID), optional("--hostname=", s.Hostname)...)
}

func resolvConfArgs(s Spec) []string { return optional("--resolv-conf=", s.ResolvConf) }
