/**
 * FOR TESTS ONLY: a certificate of `localhost` and 127.0.0.1 that signs itself, and its key. Members and clients of a test
 * cluster all show it and trust nothing else. The key is public, so it protects nothing.
 */
export const testCertificate = `-----BEGIN CERTIFICATE-----
MIIBqjCCAVGgAwIBAgIUINA2/jegPzfL9649gJyKlMLdXJwwCgYIKoZIzj0EAwIw
HDEaMBgGA1UEAwwRZHFsaXRlIHRlc3RzIG9ubHkwIBcNMjYxMTIxMDIwMzM0WhgP
MjEyNjEwMjgwMjAzMzRaMBwxGjAYBgNVBAMMEWRxbGl0ZSB0ZXN0cyBvbmx5MFkw
EwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAETCOKYhCAivSmjU33WX4UUS2F2r4ie/rl
fkky6upodIXfSPejrN0tZ/taiHVA4JBZniMsMgBThSY5EFXFDRnqMqNvMG0wHQYD
VR0OBBYEFEcCezmEhjXNYbiCvyoT9sPZkx/lMB8GA1UdIwQYMBaAFEcCezmEhjXN
YbiCvyoT9sPZkx/lMA8GA1UdEwEB/wQFMAMBAf8wGgYDVR0RBBMwEYIJbG9jYWxo
b3N0hwR/AAABMAoGCCqGSM49BAMCA0cAMEQCIFoCrZdeZ8GDctvMU1ywA962csa+
votq8srH3zzJSHK+AiBAu9z76edQQ3FUPzdV2f7FgOB8jrNqL3mffaFFLReIKg==
-----END CERTIFICATE-----
`

export const testKey = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgMMaEZP1thyHSfSXA
4wud9B3AIQNqGUCegrjL09CddwGhRANCAARMI4piEICK9KaNTfdZfhRRLYXaviJ7
+uV+STLq6mh0hd9I96Os3S1n+1qIdUDgkFmeIywyAFOFJjkQVcUNGeoy
-----END PRIVATE KEY-----
`
