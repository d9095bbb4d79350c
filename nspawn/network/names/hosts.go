package names

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// HostGateway is a name for the host's address in an extra host, as in docker.
const HostGateway = "host-gateway"

// Extra is a name that a job adds to /etc/hosts.
type Extra struct {
	Name    string
	Address netip.Addr
	Gateway bool // the host's address, which is not known before the network exists
}

// ParseExtra parses an entry of extra_hosts, NAME:ADDRESS. The address may be
// IPv6, with or without brackets, or host-gateway.
func ParseExtra(entry string) (Extra, error) {
	name, address, found := strings.Cut(entry, ":")
	if !found {
		return Extra{}, fmt.Errorf("extra host %q: want NAME:ADDRESS", entry)
	}
	if err := CheckHostname(name); err != nil {
		return Extra{}, fmt.Errorf("extra host %q: %w", entry, err)
	}
	if address == HostGateway {
		return Extra{Name: name, Gateway: true}, nil
	}
	if strings.HasPrefix(address, "[") && strings.HasSuffix(address, "]") {
		address = address[1 : len(address)-1]
	}
	parsed, err := netip.ParseAddr(address)
	if err != nil || parsed.Zone() != "" { // The zone of an address may contain anything, even a line feed.
		return Extra{}, fmt.Errorf("extra host %q: address %q is neither an IP address nor %s", entry, address, HostGateway)
	}
	return Extra{Name: name, Address: parsed}, nil
}

// Hosts holds the content of a container's /etc/hosts.
type Hosts struct {
	Hostname  string       // the container's own name; "" adds none
	Addresses []netip.Addr // the container's own; empty on the host's network, or with only a loopback
	Gateways  []netip.Addr // the host's addresses, for Extra
	Extra     []Extra
}

// String returns the text of the file. A name with a domain can also be found without the
// domain.
func (h Hosts) String() string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	b.WriteString(h.Own())
	if h.Hostname != "" && len(h.Addresses) == 0 { // like Debian, see hostname(1)
		writeNames(&b, []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 1, 1})}, h.Hostname)
	}
	for _, extra := range h.Extra {
		addresses := []netip.Addr{extra.Address}
		if extra.Gateway {
			addresses = h.Gateways
		}
		writeNames(&b, addresses, extra.Name)
	}
	return b.String()
}

// Own returns the lines by which others find the container, "" if it has no address.
func (h Hosts) Own() string {
	var b strings.Builder
	if h.Hostname != "" {
		writeNames(&b, h.Addresses, h.Hostname)
	}
	return b.String()
}

func writeNames(b *strings.Builder, addresses []netip.Addr, name string) {
	short, _, _ := strings.Cut(name, ".")
	for _, address := range addresses {
		fmt.Fprintf(b, "%s %s", address, name)
		if short != name {
			b.WriteString(" " + short)
		}
		b.WriteString("\n")
	}
}

// CheckHostname returns an error unless name can be a host name (hostname(7)). It accepts
// underscores, which the standard does not allow but which are in use.
func CheckHostname(name string) error {
	if name == "" {
		return errors.New("check host name: it is empty")
	}
	const longest = 64 // the kernel's limit (HOST_NAME_MAX)
	if len(name) > longest {
		return fmt.Errorf("check host name %q: it has %d characters, at most %d are possible", name, len(name), longest)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("check host name %q: parts between dots must not be empty, nor begin or end with a hyphen", name)
		}
		for _, c := range []byte(label) {
			if !letterOrDigit(c) && c != '-' && c != '_' {
				return fmt.Errorf("check host name %q: %q is not a letter, digit, hyphen or dot", name, rune(c))
			}
		}
	}
	return nil
}

func letterOrDigit(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// Rewrite replaces the text of a file that is bound into a container. A new file under
// the same name would not be visible there, because the mount holds the old one. Between
// two system calls, a reader may see the new text followed by the end of the old one.
func Rewrite(file *os.File, text string) error {
	_, err := file.WriteAt([]byte(text), 0)
	if err == nil {
		err = file.Truncate(int64(len(text)))
	}
	if err != nil {
		return fmt.Errorf("rewrite %s: %w", file.Name(), err)
	}
	return nil
}
