"""The contracts between the packages, as Protocols: from back end to transport, and from transport to device.

``values`` plain values, ``memory`` registers, events and DMA memory, ``backend`` what a back end provides,
``transport`` what a device needs of a bus; ``runtime`` what of them there is while a device is driven. This
package imports no other package; "bring your own back end" in the documentation starts here.
"""
