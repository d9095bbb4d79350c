// Package names makes the files by which a container resolves names,
// /etc/resolv.conf and /etc/hosts. Everything but Rewrite is pure: the caller
// reads the host's files and binds the results into the container.
package names

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// HostFile and UplinkFile are files of the host. In UplinkFile, systemd-resolved lists
// the servers that its stub resolver asks (systemd-resolved(8)).
const (
	HostFile   = "/etc/resolv.conf"
	UplinkFile = "/run/systemd/resolve/resolv.conf"
)

// Host holds the texts of the host's files. A missing file is "".
type Host struct{ ResolvConf, Uplink string }

// DNS is the dns block of a job. An empty list keeps the host's settings.
type DNS struct{ Servers, Searches, Options []string }

// NoServerError reports that no name server of the host can be reached from a
// container with a network of its own.
type NoServerError struct {
	Servers []string // the host's servers, as written in its files
}

func (e *NoServerError) Error() string {
	found := "the host's files name no server"
	if len(e.Servers) > 0 {
		found = "the host's files name only " + strings.Join(e.Servers, ", ") + ", which the container cannot reach"
	}
	return "find a name server for the container: " + found +
		"; set servers in the dns block of the group's network, or let " + UplinkFile + " of the host name one"
}

// ResolvConf returns the text of /etc/resolv.conf for a container.
//
// On the host's network, that is the host's own file, even if it names a stub resolver. A
// private network cannot reach loopback addresses of the host, so such servers are left
// out. If none is left, systemd-resolved's list of uplink servers is used instead. If
// that has no usable server either, ResolvConf returns a *NoServerError together with a
// text that can still be used.
//
// The job's own servers are not checked: 127.0.0.1 may be another task of the group.
func ResolvConf(host Host, dns DNS, private bool) (string, error) {
	if !private && len(dns.Servers)+len(dns.Searches)+len(dns.Options) == 0 {
		return host.ResolvConf, nil
	}
	base := parse(host.ResolvConf)
	var err error
	if private && len(dns.Servers) == 0 {
		base, err = reachable(base, parse(host.Uplink))
	}
	if len(dns.Servers) > 0 {
		base.servers = clean(dns.Servers)
	}
	if len(dns.Searches) > 0 {
		base.search = []string{"search " + strings.Join(clean(dns.Searches), " ")}
	}
	if len(dns.Options) > 0 {
		base.options = []string{"options " + strings.Join(clean(dns.Options), " ")}
	}
	return base.String(), err
}

// reachable returns the first of the two files with a server that a private network can
// reach, reduced to such servers.
func reachable(own, uplink resolver) (resolver, error) {
	for _, file := range []resolver{own, uplink} {
		if servers := slices.DeleteFunc(slices.Clone(file.servers), unreachable); len(servers) > 0 {
			file.servers = servers
			return file, nil
		}
	}
	servers := append(slices.Clone(own.servers), uplink.servers...)
	slices.Sort(servers)
	own.servers = nil
	return own, &NoServerError{Servers: slices.Compact(servers)}
}

// unreachable reports whether a name server is on the host's loopback, or can only be
// reached over a link of the host. The C library uses 0.0.0.0 and :: for the host itself.
// A text that netip cannot parse may be another spelling of a loopback address, such as
// 127.1.
func unreachable(server string) bool {
	address, err := netip.ParseAddr(server)
	if err != nil {
		return true
	}
	address = address.Unmap()
	return address.IsLoopback() || address.IsUnspecified() || address.Zone() != "" || address.IsLinkLocalUnicast()
}

// resolver is a parsed resolv.conf(5). search, options and other hold whole lines of the
// file.
type resolver struct {
	servers                []string
	search, options, other []string
}

// parse splits a file by keyword. The C library accepts keywords only at the beginning of
// a line; other resolvers are more lenient, and so is parse.
func parse(text string) resolver {
	var r resolver
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") || strings.HasPrefix(fields[0], ";") {
			continue
		}
		line = strings.Join(fields, " ")
		switch fields[0] {
		case "nameserver":
			r.servers = append(r.servers, fields[1])
		case "search", "domain":
			r.search = append(r.search, line)
		case "options":
			r.options = append(r.options, line)
		default:
			r.other = append(r.other, line)
		}
	}
	return r
}

func (r resolver) String() string {
	var b strings.Builder
	for _, server := range r.servers {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	for _, line := range slices.Concat(r.search, r.options, r.other) {
		b.WriteString(line + "\n")
	}
	return b.String()
}

// clean splits a job's words at white space, so that no word can begin a new line.
func clean(words []string) []string { return strings.Fields(strings.Join(words, " ")) }

// Resolver holds the sources of a container's /etc/resolv.conf, see ResolvConf.
type Resolver struct {
	Host    Host
	DNS     DNS
	Private bool
}

// Text returns the text of the file. A *NoServerError is returned together with a text
// that can still be used.
func (r Resolver) Text() (string, error) { return ResolvConf(r.Host, r.DNS, r.Private) }

// With returns the resolver with the servers and search domains of a DHCP server added.
// The job's own settings take precedence.
func (r Resolver) With(servers []netip.Addr, searches []string) Resolver {
	if len(r.DNS.Servers) == 0 {
		for _, server := range servers {
			r.DNS.Servers = append(r.DNS.Servers, server.String())
		}
	}
	if len(r.DNS.Searches) == 0 {
		r.DNS.Searches = searches
	}
	return r
}
