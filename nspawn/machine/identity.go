package machine

// identityArgs returns the arguments that set the machine ID and host name in the
// machine.
func identityArgs(s Spec) []string {
	return append(optional("--uuid=", s.UUID), optional("--hostname=", s.Hostname)...)
}

func resolvConfArgs(s Spec) []string { return optional("--resolv-conf=", s.ResolvConf) }
