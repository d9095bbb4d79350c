package machine

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The real-time signals are numbered as glibc numbers them for programs (signal(7)):
// glibc keeps the first two of the kernel's for itself.
const (
	sigRTMin = unix.Signal(34)
	sigRTMax = unix.Signal(64)
)

// Halt asks a systemd that runs as PID 1 to shut down (systemd(1), SIGRTMIN+3).
const Halt = sigRTMin + 3

// ParseSignal parses a signal name, in any case and with or without "SIG", or a signal
// number. It also accepts RTMIN+n and RTMAX-n.
func ParseSignal(name string) (unix.Signal, error) {
	upper := strings.TrimPrefix(strings.ToUpper(strings.TrimSpace(name)), "SIG")
	if sig, ok := realTimeSignal(upper); ok {
		return sig, nil
	}
	if number, err := strconv.Atoi(upper); err == nil && number > 0 && number <= int(sigRTMax) {
		return unix.Signal(number), nil
	}
	if sig := unix.SignalNum("SIG" + upper); sig != 0 {
		return sig, nil
	}
	return 0, fmt.Errorf("unknown signal %q: use a name of signal(7), such as SIGTERM, HUP or SIGRTMIN+3", name)
}

func realTimeSignal(name string) (unix.Signal, bool) {
	base, rest := sigRTMin, ""
	switch {
	case strings.HasPrefix(name, "RTMIN"):
		rest = strings.TrimPrefix(name, "RTMIN")
	case strings.HasPrefix(name, "RTMAX"):
		base, rest = sigRTMax, strings.TrimPrefix(name, "RTMAX")
	default:
		return 0, false
	}
	if rest == "" {
		return base, true
	}
	offset, err := strconv.Atoi(rest)
	sig := base + unix.Signal(offset)
	return sig, err == nil && (rest[0] == '+' || rest[0] == '-') && sig >= sigRTMin && sig <= sigRTMax
}
