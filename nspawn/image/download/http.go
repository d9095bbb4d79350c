package download

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"os"
)

const maxRedirects = 10

// newHTTP returns a client that trusts the certificates in caFile, if not empty,
// besides the system's.
func newHTTP(caFile string) (*http.Client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableCompression = true // checksums are those of the file as it is stored
	if caFile != "" {
		roots, err := loadRoots(caFile)
		if err != nil {
			return nil, err
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	}
	return &http.Client{Transport: transport, CheckRedirect: checkRedirect}, nil
}

func loadRoots(caFile string) (*x509.CertPool, error) {
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("load the system's certificates: %w", err)
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read CA file: %w", err)
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read CA file: no certificate in %s", caFile)
	}
	return roots, nil
}

// checkRedirect decides whether req is made, after those in via.
func checkRedirect(req *http.Request, via []*http.Request) error {
	from, to := via[len(via)-1].URL.Scheme, req.URL.Scheme
	switch {
	case len(via) > maxRedirects:
		return fmt.Errorf("%w: there were %d before it", errRedirect, maxRedirects)
	case to != "https" && (to != "http" || from == "https"):
		return fmt.Errorf("%w: it leads from %s to %s", errRedirect, from, to)
	}
	return nil
}

// get asks for u. The body of the answer must be closed.
func (s *source) get(ctx context.Context, u *url.URL, header http.Header) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	for key, values := range header {
		req.Header[key] = values
	}
	req.Header.Set("User-Agent", "nomad-driver-nspawn")
	if s.user != nil {
		// As a header and not in the URL, so that net/http gives it to no other
		// host upon a redirect, and has nothing to quote in an error.
		password, _ := s.user.Password()
		req.SetBasicAuth(s.user.Username(), password)
	}
	watch := newWatchdog(s.inactivity, cancel)
	resp, err := s.http.Do(req)
	watch.rest()
	if err != nil {
		err = explain(ctx, err)
		cancel(nil)
		return nil, err
	}
	resp.Body = &body{resp.Body, ctx, cancel, watch}
	return resp, nil
}
