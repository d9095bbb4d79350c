package links

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const (
	// echoTimeout is 100 times as long as an answer takes. If the host's firewall drops
	// even answers, the start must not be delayed for long.
	echoTimeout  = 500 * time.Millisecond
	echoInterval = time.Millisecond
	// minEchoes is how many requests are sent at least: on a busy host this process may
	// have slept all that time, with the answer waiting.
	minEchoes = 50
)

// awaitEcho waits until the kernel in the container's namespace has answered at each
// address. The error says which address did not answer.
func awaitEcho(ctx context.Context, c Connection) error {
	end := time.Now().Add(echoTimeout)
	for i, address := range c.addresses() {
		if err := echo(ctx, end, c.Gateways[i], address.Addr()); err != nil {
			return fmt.Errorf("ask the container at %s for an echo (does a firewall of the host drop the answer?): %w", address.Addr(), err)
		}
	}
	return nil
}

// echo sends echo requests from one address of the host until the other address answers,
// or end is over and enough of them were sent.
func echo(ctx context.Context, end time.Time, from, to netip.Addr) error {
	network, request, reply, protocol := "ip4:icmp", icmp.Type(ipv4.ICMPTypeEcho), icmp.Type(ipv4.ICMPTypeEchoReply), 1
	if to.Is6() {
		network, request, reply, protocol = "ip6:ipv6-icmp", ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, 58
	}
	conn, err := icmp.ListenPacket(network, from.String())
	if err != nil {
		return fmt.Errorf("open raw socket: %w", err)
	}
	defer conn.Close()
	// The kernel computes the checksum for IPv6.
	message := icmp.Message{Type: request, Body: &icmp.Echo{ID: int(binary.BigEndian.Uint16(to.AsSlice()[2:])), Data: []byte("nomad-nspawn")}}
	packet, err := message.Marshal(nil)
	if err != nil {
		return err
	}
	answer := make([]byte, 1500)
	for n := 0; ctx.Err() == nil && (n < minEchoes || time.Now().Before(end)); n++ {
		if _, err := conn.WriteTo(packet, &net.IPAddr{IP: to.AsSlice()}); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		for err = conn.SetReadDeadline(time.Now().Add(echoInterval)); err == nil; {
			var n int
			var peer net.Addr
			if n, peer, err = conn.ReadFrom(answer); err == nil && isAnswer(answer[:n], protocol, reply, peer, to) {
				return nil
			}
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("receive: %w", err)
		}
	}
	return cmp.Or(ctx.Err(), context.DeadlineExceeded)
}

func isAnswer(packet []byte, protocol int, reply icmp.Type, peer net.Addr, to netip.Addr) bool {
	message, err := icmp.ParseMessage(protocol, packet)
	if err != nil || message.Type != reply {
		return false
	}
	address, ok := peer.(*net.IPAddr)
	return ok && address.IP.Equal(to.AsSlice())
}
