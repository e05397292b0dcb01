#!/bin/sh
# Makes the certificates of these tests, valid for a hundred years: two authorities, a server of each, a client of each.
set -eu
cd "$(dirname "$0")/certificates"
for name in first second; do
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -subj "/CN=$name authority" \
    -keyout "$name-ca.key" -out "$name-ca.pem" -addext "keyUsage=critical,keyCertSign,cRLSign" 2>/dev/null
  for who in server client; do
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$name $who" \
      -keyout "$name-$who.key" -out "$name-$who.csr" 2>/dev/null
    printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\nkeyUsage=digitalSignature\n' > ext
    openssl x509 -req -days 36500 -in "$name-$who.csr" -CA "$name-ca.pem" -CAkey "$name-ca.key" -CAcreateserial \
      -extfile ext -out "$name-$who.pem" 2>/dev/null
  done
  rm -f "$name-ca.key" "$name-ca.srl" "$name"-*.csr ext
done
openssl ec -in first-server.key -aes256 -passout pass:secret -out encrypted.key 2>/dev/null
